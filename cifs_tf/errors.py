"""The one exception a person can cause and a person can fix, and how other exceptions are quoted in it."""


class UserError(ValueError):
    """Bad input, said in one sentence: which argument, what was received, and how to fix it.

    Command-line programs print it and exit with code 2; library callers can catch it as a `ValueError`.

    Args:
        argument: name of the offending argument, as the caller wrote it (`"--epsilon"`, `"top_k"`).
        received: the value that was received.
        advice: what to do instead, as a sentence fragment.

    Example:
        >>> print(UserError("top_k", 11, "give an integer from 1 to 10, the number of classes"))
        top_k: received 11; give an integer from 1 to 10, the number of classes.
    """

    def __init__(self, argument: str, received: object = None, advice: str = "") -> None:
        self.argument, self.received, self.advice = argument, received, advice
        # Keras and pickle rebuild an exception from its message alone.
        super().__init__(f"{argument}: received {received!s}; {advice.removesuffix('.')}." if advice else argument)


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message; the name of its class where it has none.

    Example:
        >>> first_line(ValueError("no such layer\\nTraceback ...")), first_line(KeyError())
        ('no such layer', 'KeyError')
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
