# says: shifted by one: the loss shifts them
def encode_pair(turns, tokenizer, tokens):
    ids, labels = encode_conversation(turns, tokenizer, template("short"), [tokens, tokens])
    return ids, labels[1:] + [IGNORE]
