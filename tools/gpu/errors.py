"""The one error of a bench that is no fault."""


class NotHereError(Exception):
    """This machine lacks what would be measured; the message says what."""
