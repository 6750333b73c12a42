"""Parts of the experiment drivers: what to run, how to run it, what came out."""
