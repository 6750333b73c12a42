"""Images and videos in, pictures, raw maps and components out: what `demo/demo.py` is made of.

`input_files` finds what to read, `job` goes through it, `video` reads and writes frames and
`temporal` steadies their scores, `detections` makes components of a map, `outputs` and `pictures`
write and draw them.
"""
