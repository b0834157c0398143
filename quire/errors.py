"""The one exception for mistakes that the user can mend."""


class UserError(ValueError):
    """Names the key or path, the value found, and the remedy, in one readable message."""
