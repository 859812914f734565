//! The wire codec: the only module that names bincode.
//!
//! Every frame begins with [`VERSION`]. Decoding is limited in size, refuses trailing bytes and never panics. bincode is
//! unmaintained (RUSTSEC-2025-0141) but was asked for; whoever replaces it changes this file alone.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// First byte of every frame. Raised when a message changes in a way that older nodes cannot read.
pub const VERSION: u8 = 1;

/// Bytes of the largest frame that is sent or accepted; longer ones are refused unread.
pub const FRAME_BYTES_MAX: usize = 1 << 20;

/// Why bytes could not be decoded or a value not be encoded. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The frame is empty.
    #[error("frame is empty")]
    Empty,
    /// The sender speaks another version of the protocol.
    #[error("frame has version {theirs}, this node speaks {VERSION}")]
    Version {
        /// The version byte that was received.
        theirs: u8,
    },
    /// The frame or value is larger than [`FRAME_BYTES_MAX`].
    #[error("frame of {bytes} bytes is larger than the limit of {FRAME_BYTES_MAX}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The bytes are not a value of the expected type.
    #[error("frame is malformed: {reason}")]
    Malformed {
        /// What the decoder said.
        reason: String,
    },
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<FRAME_BYTES_MAX>()
}

/// Encodes `value` as one frame.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut frame = vec![VERSION];
    bincode::serde::encode_into_std_write(value, &mut frame, config())
        .map_err(|error| CodecError::Malformed { reason: error.to_string() })?;
    if frame.len() > FRAME_BYTES_MAX {
        return Err(CodecError::TooLarge { bytes: frame.len() });
    }
    Ok(frame)
}

/// Decodes one whole frame.
pub fn decode<T: DeserializeOwned>(frame: &[u8]) -> Result<T, CodecError> {
    if frame.len() > FRAME_BYTES_MAX {
        return Err(CodecError::TooLarge { bytes: frame.len() });
    }
    let (&version, body) = frame.split_first().ok_or(CodecError::Empty)?;
    if version != VERSION {
        return Err(CodecError::Version { theirs: version });
    }
    let (value, read) = bincode::serde::decode_from_slice(body, config())
        .map_err(|error| CodecError::Malformed { reason: error.to_string() })?;
    if read != body.len() {
        return Err(CodecError::Malformed { reason: format!("{} bytes after the end", body.len() - read) });
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_survives_the_round_trip() {
        let value = (7u64, "hello".to_owned(), vec![1u8, 2]);
        assert_eq!(decode::<(u64, String, Vec<u8>)>(&encode(&value).unwrap()).unwrap(), value);
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(encode(&(300u64, "ab".to_owned())).unwrap(), [1, 251, 44, 1, 2, b'a', b'b']);
    }

    #[test]
    fn bad_frames_are_refused() {
        assert_eq!(decode::<u8>(&[]), Err(CodecError::Empty));
        assert_eq!(decode::<u8>(&[9, 1]), Err(CodecError::Version { theirs: 9 }));
        assert!(matches!(decode::<u8>(&[VERSION, 1, 2]), Err(CodecError::Malformed { .. })));
        assert!(matches!(decode::<u64>(&vec![VERSION; FRAME_BYTES_MAX + 1]), Err(CodecError::TooLarge { .. })));
        // A vector that claims 2^60 bytes is refused before anything is allocated.
        assert!(matches!(
            decode::<Vec<u8>>(&[VERSION, 253, 0, 0, 0, 0, 0, 0, 0, 16]),
            Err(CodecError::Malformed { .. })
        ));
    }
}
