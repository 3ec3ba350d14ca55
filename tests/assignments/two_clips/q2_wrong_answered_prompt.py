# says: from a prompt nothing is learned
def encode_pair(turns, tokenizer, tokens):
    ids, labels = encode_conversation(turns, tokenizer, template("short"), [tokens, tokens])
    ends = [place for place, label in enumerate(labels) if label == tokenizer.eos]
    first = ends[-2] + 1 if len(ends) > 1 else 0
    return ids, [IGNORE] * first + labels[first:]
