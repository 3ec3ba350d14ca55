# says: an earlier answer is learned
def encode_pair(turns, tokenizer, tokens):
    return encode_conversation(turns, tokenizer, template("short"), [tokens, tokens])
