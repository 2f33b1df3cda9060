"""What a sound file is, and its samples, out of the process that can be killed."""
