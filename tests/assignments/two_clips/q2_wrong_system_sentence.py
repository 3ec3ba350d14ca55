# says: the ids differ from the layout
def encode_pair(turns, tokenizer, tokens):
    return encode_conversation(turns, tokenizer, template("v1"), [tokens, tokens])
