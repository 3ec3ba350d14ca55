# says: not by its square root
def inflate(weight, depth=2):
    return repeat(weight / depth**0.5, "d c p q -> d (c u p q)", u=depth)
