//! Check digits. Each rule gets the digits or capital letters of a number, without what parts them.

/// The value of a digit; 0 for what is none.
pub(super) fn value(byte: u8) -> u32 {
    if byte.is_ascii_digit() { u32::from(byte - b'0') } else { 0 }
}

pub(super) fn number(digits: &[u8]) -> u64 {
    digits.iter().fold(0u64, |sum, &d| sum.wrapping_mul(10).wrapping_add(u64::from(value(d))))
}

/// Σ digit × weight.
pub(super) fn weighted(digits: &[u8], weights: &[u32]) -> u32 {
    digits.iter().zip(weights).map(|(&d, w)| value(d) * w).sum()
}

/// Luhn's rule (ISO/IEC 7812-1, annex B).
pub(super) fn luhn(digits: &[u8]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(i, &d)| if i % 2 == 0 { value(d) } else { [0, 2, 4, 6, 8, 1, 3, 5, 7, 9][value(d) as usize] })
        .sum();
    sum.is_multiple_of(10)
}

/// ISO 7064, MOD 11,10: the last digit checks the others.
pub(super) fn mod_11_10(digits: &[u8]) -> bool {
    let Some((last, head)) = digits.split_last() else { return false };
    let product = head.iter().fold(10u32, |product, &d| {
        let sum = (value(d) + product) % 10;
        (if sum == 0 { 10 } else { sum }) * 2 % 11
    });
    (11 - product) % 10 == value(*last)
}

/// ISO 7064, MOD 97-10, over digits and letters (A is 10).
pub(super) fn mod_97(text: impl IntoIterator<Item = u8>) -> u32 {
    text.into_iter().fold(0u32, |rest, byte| match byte {
        b'0'..=b'9' => (rest * 10 + u32::from(byte - b'0')) % 97,
        _ => (rest * 100 + u32::from(byte - b'A') + 10) % 97,
    })
}

/// Verhoeff's rule, by the dihedral group of order ten.
pub(super) fn verhoeff(digits: &[u8]) -> bool {
    let multiply = |a: u32, b: u32| match (a < 5, b < 5) {
        (true, true) => (a + b) % 5,
        (true, false) => (a + b - 5) % 5 + 5,
        (false, true) => (a - 5 + 5 - b) % 5 + 5,
        (false, false) => (a + 5 - b) % 5,
    };
    const STEP: [u32; 10] = [1, 5, 7, 6, 2, 8, 3, 0, 9, 4];
    let permuted = |digit: u32, times: usize| (0..times).fold(digit, |d, _| STEP[d as usize]);
    let sum =
        digits.iter().rev().enumerate().fold(0, |sum, (i, &d)| multiply(sum, permuted(value(d), i % 8)));
    sum == 0
}

/// Whether this is a day of a month, in two digits each; 29 February counts in any year.
pub(super) fn day(month: u32, day: u32) -> bool {
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 => 29,
        _ => 0,
    };
    (1..=days).contains(&day)
}
