class Inputs:
    pass


def open_inputs(o):
    pass
