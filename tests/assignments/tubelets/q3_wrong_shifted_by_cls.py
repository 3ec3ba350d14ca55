# says: shifted by one: row 0
def place(tokens, position, moment):
    return (
        tokens
        + repeat(position[:-1], "n d -> (t n) d", t=len(moment))
        + repeat(moment, "t d -> (t n) d", n=len(position) - 1)
    )
