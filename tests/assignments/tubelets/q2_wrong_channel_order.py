# says: mix channels and time
def inflate(weight, depth=2):
    return repeat(weight / depth, "d c p q -> d (u c p q)", u=depth)
