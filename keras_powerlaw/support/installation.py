"""The command that installs what is missing."""


def command(extra: str) -> str:
    """The command that adds an extra of `setup.py` to the installed package.

    It works in any folder, after an installation from a clone too. The quotes are for
    zsh.
    """
    return f"pip install 'keras-powerlaw[{extra}]'"
