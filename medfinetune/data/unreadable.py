"""Why a file gives no image."""


class UnreadableImage(Exception):
    """A file that cannot be opened as an image.

    Attributes:
        reason: A short phrase, the same for all files with the same fault: it is counted.
        detail: What is particular to this file.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
