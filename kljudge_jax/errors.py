"""The one exception of the border: input that cannot be used."""


class InputError(ValueError):
    """A model, prompt or option that cannot be used. Its message is one sentence that says what to do instead.

    Raised where input enters; the command line prints it and exits with 2.
    """
