# says: no output sees the change
def inflate_with_motion(weight):
    return inflate(weight, 2)
