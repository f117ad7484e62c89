"""The special tokens, written once: the tokenizer reserves them, training and decoding read them here.

A control prefix stands before `<sos>` and tells the model what story is wanted:

    <ending> happy <length_3> <include> dragon <sos> Once upon a time ... happy. </sos>

so a story without wishes is plain `<sos> text </sos>`. Ids 0 to 15 are reserved from the first tokenizer on; a
checkpoint trained without prefixes and one trained with them share one vocabulary.
"""

PAD, BOS, EOS = "<pad>", "<sos>", "</sos>"
ENDING, INCLUDE = "<ending>", "<include>"
LENGTHS = tuple(f"<length_{bucket}>" for bucket in range(1, 9))
RESERVED = tuple(f"<reserved_{number}>" for number in range(1, 4))

SPECIAL_TOKENS = (PAD, BOS, EOS, ENDING, INCLUDE, *LENGTHS, *RESERVED)  # in order of their ids
