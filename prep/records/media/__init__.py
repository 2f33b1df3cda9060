"""The media that records name: in parts, in columns for bare parts, and in columns that nothing reads."""
