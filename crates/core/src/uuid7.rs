//! UUID version 7 (RFC 9562, section 5.7) whose time part gives back the exact microsecond.
//!
//! 48 bits of milliseconds since the Unix epoch, the version, then in `rand_a` the fraction of the millisecond as
//! method 3 of section 6.2 has it: 12 bits, so 4096 steps for 1000 microseconds. The step is rounded up, so that rounding
//! down on the way back meets the same microsecond. The rest is random.

const MAX_MS: i64 = (1 << 48) - 1;

/// A new UUID for an instant in microseconds since the Unix epoch. Of `random`, the last 62 bits are used.
/// An instant before 1970 or after the year 10889 is moved to the nearest one that the format can hold.
pub fn new(unix_us: i64, random: [u8; 10]) -> [u8; 16] {
    let us = unix_us.clamp(0, MAX_MS * 1000 + 999);
    let ms = (us / 1000) as u64;
    let fraction = ((us % 1000) as u64 * 4096).div_ceil(1000);
    let mut id = [0u8; 16];
    id[..6].copy_from_slice(&ms.to_be_bytes()[2..]);
    id[6..8].copy_from_slice(&(0x7000 | fraction as u16).to_be_bytes());
    id[8..].copy_from_slice(&random[2..]);
    id[8] = 0x80 | (id[8] & 0x3f);
    id
}

/// The instant of a UUID made by [`new`], in microseconds since the Unix epoch.
pub fn unix_us(id: &[u8; 16]) -> i64 {
    let ms = id[..6].iter().fold(0i64, |ms, &byte| ms << 8 | i64::from(byte));
    let fraction = i64::from(u16::from_be_bytes([id[6], id[7]]) & 0x0fff);
    ms * 1000 + fraction * 1000 / 4096
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_microsecond_comes_back() {
        for us in 0..1000 {
            let at = 1_700_000_000_123_000 + us;
            assert_eq!(unix_us(&new(at, [0xff; 10])), at);
            assert_eq!(unix_us(&new(at, [0; 10])), at);
        }
    }

    #[test]
    fn layout_is_that_of_rfc_9562() {
        // the example of appendix A.6: 0x017F22E279B0 ms
        let id = new(0x017F_22E2_79B0 * 1000, [0xff; 10]);
        assert_eq!(id[..6], [0x01, 0x7f, 0x22, 0xe2, 0x79, 0xb0]);
        assert_eq!(id[6] >> 4, 7);
        assert_eq!(id[8] >> 6, 2);
        assert_eq!(new(0, [0; 10])[8..], [0x80, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn later_instants_sort_later() {
        let a = new(1_700_000_000_123_456, [0xff; 10]);
        let b = new(1_700_000_000_123_457, [0; 10]);
        assert!(a < b);
    }

    #[test]
    fn what_the_format_cannot_hold_is_clamped() {
        assert_eq!(unix_us(&new(-1, [0; 10])), 0);
        assert_eq!(unix_us(&new(i64::MAX, [0; 10])), MAX_MS * 1000 + 999);
    }
}
