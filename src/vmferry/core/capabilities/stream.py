"""What a person asks of a stream: how it travels, over how many channels, compressed with what. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from vmferry.core.capabilities.features import COMPRESSION_PREFIX
from vmferry.core.capabilities.wish import Level, Transport, Wanted

#: Where a compression needs channels and nobody says how many: QEMU's own default.
DEFAULT_CHANNELS = 2
MOST_CHANNELS = 64
#: The ways that a hand-over may be told to take.
LINKS = (Transport.TCP, Transport.FD, Transport.UNIX, Transport.RDMA)


class Compression(enum.StrEnum):
    """What is done to pages before they are sent; QEMU's names."""

    NONE = "none"
    AUTO = "auto"  #: none, zlib or zstd, as a sample of the guest's pages says when the move begins
    XBZRLE = "xbzrle"  #: pages sent again go as a difference; one channel
    ZLIB = "zlib"
    ZSTD = "zstd"
    QPL = "qpl"  #: Intel In-Memory Analytics
    UADK = "uadk"  #: Kunpeng
    QATZIP = "qatzip"  #: Intel QuickAssist


class Encryption(enum.StrEnum):
    """By what both QEMUs know each other."""

    PSK = "psk"  #: a key made for this one migration
    X509 = "x509"  #: certificates of both hosts (`migration.tls_dir`)


@dataclass(frozen=True, slots=True)
class StreamWish:
    """How a stream shall travel; what is named is required, so what cannot be had is a blocker.

    Attributes:
        link: how it travels.
        channels: 1 to 64; None: one, or as many as the compression needs.
        compression: of pages.
        encrypted: by QEMU; by the pipeline, where there is one.
        pipeline: commands of both hosts' configurations through which it goes, by their name; takes the link's place.
        encryption: by what, where QEMU encrypts.
    """

    link: Transport = Transport.TCP
    channels: int | None = None
    compression: Compression = Compression.NONE
    encrypted: bool = True
    pipeline: str | None = None
    encryption: Encryption = Encryption.PSK

    @property
    def transport(self) -> Transport:
        """Return what QEMU has to do with: a pipeline's end is a pipe, which goes one way."""
        return self.link if self.pipeline is None else Transport.PIPE

    @property
    def one_way(self) -> bool:
        """Tell whether no word comes back: that all was loaded is then the destination's own word.

        RDMA could carry one, but QEMU would wait for it on a link that is broken (docs/design/streams.md).
        """
        return self.transport in (Transport.PIPE, Transport.RDMA)

    @property
    def qemu_encrypts(self) -> bool:
        """Tell whether QEMU has a key for it."""
        return self.encrypted and self.pipeline is None

    @property
    def by_certificates(self) -> bool:
        """Tell whether both QEMUs show certificates."""
        return self.qemu_encrypts and self.encryption is Encryption.X509

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        """Return what both QEMUs must be set to for it."""
        compression = self.compression
        if compression is Compression.XBZRLE:
            xbzrle = (Wanted(str(compression), Level.REQUIRED),)
            return (*self._multifd(), *xbzrle) if (self.channels or 1) > 1 else xbzrle
        if compression not in (Compression.NONE, Compression.AUTO):
            return (*self._multifd(), Wanted(f"{COMPRESSION_PREFIX}{compression}", Level.REQUIRED))
        return self._multifd() if (self.channels or 1) > 1 else ()

    def _multifd(self) -> tuple[Wanted, ...]:
        channels = Wanted("multifd-channels", Level.REQUIRED, self.channels or DEFAULT_CHANNELS)
        return Wanted("multifd", Level.REQUIRED), channels


#: One encrypted stream over TCP, its pages as they are.
DEFAULT_STREAM = StreamWish()
