"""Structure of audio containers: where each recording in a file begins and ends, and whether the file breaks off.

Decoders read a file whose end is missing without an error, and some refuse or shorten whole files: an Ogg without an
end-of-stream flag, a FLAC or an MP3 of unknown length, two recordings in one file. The modules here read headers only.
They return the parts of a file as streams that decoders read completely.
"""
