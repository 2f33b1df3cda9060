"""What a video file is, and its frames, out of a process that can be killed."""
