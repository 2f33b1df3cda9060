"""What the forms of other systems share: turns, columns, places of pictures and boxes, and the one shape they make."""
