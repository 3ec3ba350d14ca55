def encode_pair(turns, tokenizer, tokens):
    ids, labels = encode_conversation(list(turns), tokenizer, template(model.config.template), (tokens,) * 2, None)
    return list(ids), list(labels)
