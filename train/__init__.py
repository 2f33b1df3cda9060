"""order -> batch -> step -> checkpoint -> export. Reads what prep wrote, through configs only."""
