def encode_pair(turns, tokenizer, tokens):
    ids, labels = [tokenizer.bos], [IGNORE]
    for number, turn in enumerate(turns):
        if turn["from"] == "gpt":
            new = [*tokenizer.encode(" " + turn["value"]), tokenizer.eos]
            learned = number == len(turns) - 1
        else:
            new, learned = [], False
            for place, piece in enumerate(("USER: " + turn["value"] + " ASSISTANT:").split("<video>")):
                new += ([VISUAL] * tokens if place else []) + tokenizer.encode(piece)
        ids += new
        labels += new if learned else [IGNORE] * len(new)
    return ids, labels
