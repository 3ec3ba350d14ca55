# says: each clip has its own run
def encode_pair(turns, tokenizer, tokens):
    return encode_conversation(turns, tokenizer, template("short"), [1, 1])
