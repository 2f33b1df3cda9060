"""lmms demo: the whole way in a few minutes, on two cores, with nothing to download.

draw_pictures makes a set of pictures with questions, demo prepares, trains, resumes and exports, and ask puts questions
about new pictures to the exported model. model/ is a tiny Qwen3-VL model folder that tools/make_demo_model.py made.
"""
