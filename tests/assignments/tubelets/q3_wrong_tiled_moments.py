# says: moments and places are exchanged
def place(tokens, position, moment):
    return (
        tokens
        + repeat(position[1:], "n d -> (t n) d", t=len(moment))
        + repeat(moment, "t d -> (n t) d", n=len(position) - 1)
    )
