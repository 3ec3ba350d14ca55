# says: more than the answer is learned
def encode_pair(turns, tokenizer, tokens):
    ids, labels = encode_conversation(turns, tokenizer, template("short"), [tokens, tokens])
    if len(turns) > 1:
        labels = [i if i != VISUAL else IGNORE for i in ids]
    return ids, labels
