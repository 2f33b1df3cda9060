"""What is known before the first step: the opened run, memory, length, advice."""
