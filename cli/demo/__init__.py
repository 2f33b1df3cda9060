"""lmms demo: the whole way in a few minutes, on two cores, with nothing to download.

draw.py makes a picture-question set, ask.py puts held-out questions to the exported model, story.py tells what happens
in between; model/ is a tiny Qwen3-VL type model folder that tools/make_demo_model.py made.
"""
