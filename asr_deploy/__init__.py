"""The ``asr-deploy`` command, which has all commands of ``export``, ``quantize`` and ``runtime``."""
