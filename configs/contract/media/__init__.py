"""What a model takes of a picture, a video or a sound: sizes, frames, samples and tokens. Prep and train share it."""
