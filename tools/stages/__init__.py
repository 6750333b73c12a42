"""Parts of tools/run_stages.py: what to run, how to run it, what came out."""
