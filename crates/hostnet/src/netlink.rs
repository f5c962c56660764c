//! Netlink attributes as netfilter's subsystems use them: reading without trust in lengths, and writing.

/// NLA_F_NESTED.
const NESTED: u16 = 1 << 15;
/// Everything but the flags.
const KIND: u16 = 0x3fff;

/// The attributes in `bytes`: kind without flags, and value. Ends at the first one that does not fit.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let header = rest.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & KIND;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of that kind.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// Appends an attribute with others inside.
pub(crate) fn push_nested(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    message.extend(length.to_ne_bytes());
    message.extend((kind | NESTED).to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_torn_attributes_end_the_list() {
        let mut bytes = Vec::new();
        push_nested(&mut bytes, 1, b"abc");
        push_nested(&mut bytes, 2, b"");
        assert_eq!(attributes(&bytes).collect::<Vec<_>>(), [(1, &b"abc"[..]), (2, &b""[..])]);
        assert_eq!(attribute(&bytes, 2), Some(&b""[..]));
        assert_eq!(attributes(&bytes[..6]).count(), 0);
        assert_eq!(attributes(&[2, 0, 1, 0, 9, 9]).count(), 0, "a length below the header's");
    }
}
