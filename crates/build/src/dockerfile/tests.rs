use super::*;

fn parsed(text: &str) -> Dockerfile {
    Dockerfile::parse(text.as_bytes()).unwrap()
}

fn refused(text: &str) -> String {
    Dockerfile::parse(text.as_bytes()).unwrap_err().to_string()
}

#[test]
fn everything_of_the_reference() {
    insta::assert_debug_snapshot!(parsed(include_str!("tests/everything.Dockerfile")));
}

#[test]
fn backquotes_escape_where_the_file_says_so() {
    let file = parsed("# escape=`\nFROM a\nCOPY a.txt c:\\`\n  # between\n\n  dir\nENV A=x` y\n");
    let Step::Copy(copy) = &file.stages[0].instructions[0].step else { panic!() };
    assert_eq!(
        (copy.sources.paths.as_slice(), copy.destination.as_str()),
        (&["a.txt".to_owned(), "c:\\".to_owned()][..], "dir")
    );
    let Step::Env(pairs) = &file.stages[0].instructions[1].step else { panic!() };
    assert_eq!(pairs[0].value, "x` y");
}

#[test]
fn errors_point_at_the_line_and_know_the_word() {
    let cases = [
        "FORM a",
        "",
        "# only a comment\n",
        "RUN a",
        "ARG A\nENV B=1\nFROM a",
        "FROM",
        "FROM a b",
        "FROM a AS 1x",
        "FROM --plattform=x a",
        "FROM a AS b\nFROM c AS B",
        "FROM a\nRUN",
        "FROM a\n\nCPOY a b",
        "FROM a\nCOPY a",
        "FROM a\nCOPY --form=b a b",
        "FROM a\nCOPY --link=maybe a b",
        "FROM a\nCOPY --chown= a b",
        "FROM a\nRUN --mount=type=cahce,target=/x true",
        "FROM a\nRUN --mount=type=cache true",
        "FROM a\nRUN --mount=tpye=cache,target=/x true",
        "FROM a\nRUN --mount=type=bind,size=1,target=/x true",
        "FROM a\nRUN --network=hots true",
        "FROM a\nENV A",
        "FROM a\nENV A=1 B",
        "FROM a\nENV =1",
        "FROM a\nARG =1",
        "FROM a\nSHELL sh",
        "FROM a\nUSER a b",
        "FROM a\nVOLUME [\"\"]",
        "FROM a\nONBUILD FROM b",
        "FROM a\nONBUILD ONBUILD RUN a",
        "FROM a\nONBUILD RNU a",
        "FROM a\nHEALTHCHECK CMD",
        "FROM a\nHEALTHCHECK --intervall=1s NONE",
        "FROM a\nHEALTHCHECK --retries=-1 NONE",
        "FROM a\nHEALTHCHECK --timeout=1us CMD x",
        "FROM a\nHEALTHCHECK CMMD x",
        "FROM a\nRUN <<EOF\necho",
        "FROM a\nCOPY a <<EOF\nEOF",
        "# escape=x\nFROM a",
        "# escape=`\n# escape=`\nFROM a",
    ];
    let answers: Vec<String> = cases.iter().map(|text| format!("{text:?}\n    {}", refused(text))).collect();
    insta::assert_snapshot!(answers.join("\n"));
}

#[test]
fn directives_end_where_something_else_begins() {
    let file = parsed("#syntax = docker/dockerfile:1\n# nothing\n# escape=`\nFROM a\\\nb\n");
    assert_eq!(file.directives.syntax.as_deref(), Some("docker/dockerfile:1"));
    assert_eq!(file.directives.escape, '\\');
    assert_eq!(file.stages[0].base, "ab");
}

#[test]
fn stages_are_found_by_name_and_number() {
    let file = parsed("FROM a AS One\nFROM b\nFROM c AS 0x\n".replace(" AS 0x", "").as_str());
    assert_eq!(
        (file.stage("ONE"), file.stage("1"), file.stage("3"), file.stage("two")),
        (Some(0), Some(1), None, None)
    );
}

#[test]
fn heredocs_take_their_lines() {
    let file = parsed("FROM a\nRUN <<A <<-\"B\" cat\none $x\nA\n\ttwo\n\tB\nRUN true\n");
    let Step::Run(run) = &file.stages[0].instructions[0].step else { panic!() };
    let seen: Vec<_> =
        run.heredocs.iter().map(|one| (one.name.as_str(), one.expand, one.content.as_str())).collect();
    assert_eq!(seen, [("A", true, "one $x\n"), ("B", false, "two\n")]);
    assert_eq!(file.stages[0].instructions[1].line, 7);
}

#[test]
fn an_instruction_alone_is_read() {
    assert!(matches!(parse_instruction("RUN make").unwrap().step, Step::Run(_)));
    assert!(parse_instruction("FROM a").is_err() && parse_instruction("RUN a\nRUN b").is_err());
    let text = match parsed("FROM a\nONBUILD RUN <<E\nx\nE\n").stages[0].instructions[0].step.clone() {
        Step::Onbuild(text) => text,
        other => panic!("{other:?}"),
    };
    let Step::Run(run) = parse_instruction(&text).unwrap().step else { panic!() };
    assert_eq!(run.heredocs[0].content, "x\n");
}

#[test]
fn what_is_probably_not_meant_is_found() {
    let text = "# check=skip=MaintainerDeprecated\nFROM a as b\nfrom b\nMAINTAINER x\nENV API_TOKEN secret\nARG PUBLIC_KEY\n\
                WORKDIR a\nWORKDIR c\nCMD a\nCMD [\"b\"]\n";
    let found: Vec<String> =
        lint(&parsed(text)).iter().map(|one| format!("{} {}: {}", one.line, one.rule, one.message)).collect();
    insta::assert_snapshot!(found.join("\n"));
    assert!(lint(&parsed("# check=skip=all;error=true\nFROM a as b\n")).is_empty());
    assert!(parsed("# check=skip=all;error=true\nFROM a\n").fails_on_warnings());
}

proptest::proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "(FROM a\n)?((RUN|COPY|ENV|ARG|HEALTHCHECK|ONBUILD|ADD|LABEL) [ -~\n]{0,40}\n){0,4}") {
        if let Ok(file) = Dockerfile::parse(text.as_bytes()) {
            let _ = lint(&file);
        }
    }
}
