//! Dates and timestamps as `to_jsonb` writes them (ISO 8601), for the years 1 to 9999.
//!
//! Not a calendar library: values outside those years, and the infinities, are left to PostgreSQL's own
//! `JsonEncodeDateTime`. The arithmetic is Howard Hinnant's `civil_from_days`
//! (<https://howardhinnant.github.io/date_algorithms.html>).

/// Room for the longest text: `9999-12-31T23:59:59.999999+00:00`.
pub const MAX_LEN: usize = 32;

/// A text of at most [`MAX_LEN`] bytes.
pub struct Text {
    bytes: [u8; MAX_LEN],
    len: usize,
}

impl Text {
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn new() -> Self {
        Text { bytes: [0; MAX_LEN], len: 0 }
    }

    fn put(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    fn digits(&mut self, value: u32, width: usize) {
        let mut rest = value;
        for place in (0..width).rev() {
            self.bytes[self.len + place] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        self.len += width;
    }
}

const DAYS_1970_TO_2000: i64 = 10_957;
const USECS_PER_DAY: i64 = 86_400_000_000;
/// First and last day with a four-digit year of our era, in days from 2000-01-01.
const FIRST_DAY: i64 = -730_119;
const LAST_DAY: i64 = 2_921_939;

/// `days` from 2000-01-01, or `None` outside the years 1 to 9999.
pub fn date(days: i32) -> Option<Text> {
    let mut text = Text::new();
    put_date(&mut text, i64::from(days))?;
    Some(text)
}

/// Microseconds from 2000-01-01 00:00:00; with `+00:00` at the end if `zoned`.
pub fn timestamp(usecs: i64, zoned: bool) -> Option<Text> {
    let mut text = Text::new();
    put_date(&mut text, usecs.div_euclid(USECS_PER_DAY))?;
    let time = usecs.rem_euclid(USECS_PER_DAY);
    let (seconds, mut fraction) = ((time / 1_000_000) as u32, (time % 1_000_000) as u32);
    text.put(b'T');
    text.digits(seconds / 3600, 2);
    text.put(b':');
    text.digits(seconds / 60 % 60, 2);
    text.put(b':');
    text.digits(seconds % 60, 2);
    if fraction != 0 {
        let mut width = 6;
        while fraction % 10 == 0 {
            fraction /= 10;
            width -= 1;
        }
        text.put(b'.');
        text.digits(fraction, width);
    }
    if zoned {
        for byte in *b"+00:00" {
            text.put(byte);
        }
    }
    Some(text)
}

fn put_date(text: &mut Text, days: i64) -> Option<()> {
    if !(FIRST_DAY..=LAST_DAY).contains(&days) {
        return None;
    }
    let z = days + DAYS_1970_TO_2000 + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    text.digits(year as u32, 4);
    text.put(b'-');
    text.digits(month as u32, 2);
    text.put(b'-');
    text.digits(day as u32, 2);
    Some(())
}
