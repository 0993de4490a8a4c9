"""What every objective must do."""


class ObjectiveContract:
    pass
