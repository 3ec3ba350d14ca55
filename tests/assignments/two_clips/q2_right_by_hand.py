def encode_pair(turns, tokenizer, tokens):
    ids = [tokenizer.bos]
    pieces = ("USER: " + turns[0]["value"] + " ASSISTANT:").split("<video>")
    for number, piece in enumerate(pieces):
        ids += ([VISUAL] * tokens if number else []) + tokenizer.encode(piece)
    labels = [IGNORE] * len(ids)
    if len(turns) > 1:
        answer = [*tokenizer.encode(" " + turns[1]["value"]), tokenizer.eos]
        ids, labels = ids + answer, labels + answer
    return ids, labels
