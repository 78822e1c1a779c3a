"""Training steps as published code takes them, written plainly by us: what the step rows of the benchmark are measured against.

| peer | practice |
|---|---|
| fixmatch.Published | FixMatch's PyTorch port: one interleaved forward of all views, all with gradient; loop SGD, EMA over state_dict |
| fixmatch.Published, tuned | the same under bf16 autocast with channels_last: what its user can switch on |
| usb.Practice | semilearn's (USB's): views concatenated, four values asked of the device a step, shadow weights loaded twice |
| finessl.Published | FineSSL's: prompts as tokens through every layer, all views with gradient, class counts by a Counter on the host |
| loaders | the data side: Pillow in worker processes, or in the training process as FineSSL ships |

Each peer holds its own copy of a network of ours, so weights, batch-norm and arithmetic are the same, and one step of it can be held
against one of ours. None of their code is copied. semilearn itself (0.3.2) asks for CUDA events and for `.cuda()` in every run, so it has
no row on a CPU; its practice stands for it.
"""
