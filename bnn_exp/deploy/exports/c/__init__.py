"""The C99 export: the text of the C code and its constants, and the compiler that checks it."""
