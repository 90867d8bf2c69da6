from data_pipeline.converters.matching import entity, words


def test_whole_words_match_whatever_their_case_and_signs():
    assert words("It's the ETERNAL  City!") == " it s the eternal city "
    assert words("eternal city") in words("In the Eternal City.")
    assert words("Rom") not in words("Rome")
    assert words("snake_case") == " snake case "
    assert not words("?!").strip()


def test_brackets_after_a_title_are_not_its_name():
    assert entity("Up (film)") == words("up")
    assert entity("(500) Days of Summer") == words("500 days of summer")
    assert entity("Big Film (1999 film)  ") == " big film "
