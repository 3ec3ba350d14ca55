# says: 2 times the frame's: divide by depth
def inflate(weight, depth=2):
    return repeat(weight, "d c p q -> d (c u p q)", u=depth)
