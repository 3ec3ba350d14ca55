# says: visual tokens have labels
def encode_pair(turns, tokenizer, tokens):
    ids, labels = encode_conversation(turns, tokenizer, template("short"), [tokens, tokens])
    if len(turns) > 1:
        labels = [i if i == VISUAL else label for i, label in zip(ids, labels)]
    return ids, labels
