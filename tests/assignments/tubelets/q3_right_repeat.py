def place(tokens, position, moment):
    places = repeat(position[1:], "n d -> (t n) d", t=len(moment))
    moments = moment.repeat_interleave(len(position) - 1, dim=0)
    return tokens + places + moments
