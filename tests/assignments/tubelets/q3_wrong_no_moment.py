# says: the moment is missing
def place(tokens, position, moment):
    return tokens + repeat(position[1:], "n d -> (t n) d", t=len(moment))
