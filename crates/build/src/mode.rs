//! `--chmod`: an octal number, or changes by letters as chmod(1) has them.

/// Changes of one, which only a mistake makes more of.
const CHANGES_MAX: usize = 64;

/// What becomes of permission bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    Octal(u32),
    Changes(Vec<Change>),
}

/// One of `u=rw`, `go-w`, `+X`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The bits that it is about: those of the user, the group, the others.
    who: u32,
    sign: char,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// Bits as if they were everyone's, and whether execution is only for folders and programs.
    Bits { bits: u32, conditional: bool },
    /// Those that the user, the group or the others have: by how far they are shifted.
    Copy(u32),
}

impl Mode {
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("--chmod={text} is neither an octal number up to 7777 nor changes such as u=rw,go-w");
        if text.starts_with(|sign: char| sign.is_ascii_digit()) {
            let number = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
            return number.map(Self::Octal).ok_or_else(wrong);
        }
        let mut changes = Vec::new();
        for clause in text.split(',') {
            read(clause, &mut changes).ok_or_else(wrong)?;
            if changes.len() > CHANGES_MAX {
                return Err(wrong());
            }
        }
        Ok(Self::Changes(changes))
    }

    /// The bits that come of those that were there.
    #[must_use]
    pub fn of(&self, before: u32, folder: bool) -> u32 {
        match self {
            Self::Octal(mode) => *mode,
            Self::Changes(changes) => {
                changes.iter().fold(before & 0o7777, |mode, change| change.of(mode, folder))
            }
        }
    }
}

impl Change {
    fn of(self, mode: u32, folder: bool) -> u32 {
        let bits = match self.what {
            What::Copy(shift) => (mode >> shift & 7) * 0o111,
            What::Bits { bits, conditional } if conditional && (folder || mode & 0o111 != 0) => bits | 0o111,
            What::Bits { bits, .. } => bits,
        };
        let bits = bits & self.who;
        match self.sign {
            '+' => mode | bits,
            '-' => mode & !bits,
            // A folder keeps what its group's files are to be, unless it is said.
            _ => mode & !(self.who & 0o1777) & !(self.who & 0o6000 & if folder { 0 } else { 0o6000 }) | bits,
        }
    }
}

/// One clause: who, and then signs with what they do.
fn read(clause: &str, changes: &mut Vec<Change>) -> Option<()> {
    let rest = clause.trim_start_matches(['u', 'g', 'o', 'a']);
    let who = match &clause[..clause.len() - rest.len()] {
        "" => 0o7777,
        letters => letters.chars().fold(0, |who, letter| {
            who | match letter {
                'u' => 0o4700,
                'g' => 0o2070,
                'o' => 0o1007,
                _ => 0o7777,
            }
        }),
    };
    let mut signs = rest.chars().peekable();
    signs.peek()?;
    while let Some(sign) = signs.next() {
        if !matches!(sign, '+' | '-' | '=') {
            return None;
        }
        let copied = match signs.peek() {
            Some('u') => Some(6),
            Some('g') => Some(3),
            Some('o') => Some(0),
            _ => None,
        };
        if let Some(shift) = copied {
            signs.next();
            changes.push(Change { who, sign, what: What::Copy(shift) });
            continue;
        }
        let (mut bits, mut conditional) = (0, false);
        while let Some(letter) = signs.next_if(|letter| !matches!(letter, '+' | '-' | '=')) {
            match letter {
                'r' => bits |= 0o444,
                'w' => bits |= 0o222,
                'x' => bits |= 0o111,
                'X' => conditional = true,
                's' => bits |= 0o6000,
                't' => bits |= 0o1000,
                _ => return None,
            }
        }
        // The letters' own bits count, whoever they are for.
        changes.push(Change { who, sign, what: What::Bits { bits, conditional } });
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_mean_what_they_mean_to_chmod() {
        // What chmod(1) of coreutils makes of them with a umask of 0.
        let cases = [
            ("755", 0o600, false, 0o755),
            ("u=rw,go=r", 0o777, false, 0o644),
            ("+x", 0o644, false, 0o755),
            ("go-rwx", 0o755, false, 0o700),
            ("a+X", 0o644, false, 0o644),
            ("a+X", 0o644, true, 0o755),
            ("a+X", 0o744, false, 0o755),
            ("g=u", 0o640, false, 0o660),
            ("u+s,o+t", 0o755, false, 0o5755),
            ("u=rwx,g=rx,o=", 0o4777, false, 0o750),
            ("a=r", 0o777, true, 0o444),
            ("u-w+x", 0o600, false, 0o500),
        ];
        for (text, before, folder, after) in cases {
            assert_eq!(
                format!("{:o}", Mode::parse(text).unwrap().of(before, folder)),
                format!("{after:o}"),
                "{text}"
            );
        }
        for wrong in ["", "8", "77777", "u", "rwx", "u+z", "u=rw,", "x+r", "u=ux"] {
            assert!(Mode::parse(wrong).is_err(), "{wrong}");
        }
    }
}
