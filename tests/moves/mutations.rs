//! Takes each safety out of the scripts in turn, and of the agents' judgement of
//! who is dead: some scenario or the attack must notice. What nothing notices is
//! either not needed or not tested.

use std::panic::{AssertUnwindSafe, catch_unwind};

use acapy_deliver::internals::peers;

use crate::attack::{Attack, On, Rules};
use crate::scenarios::{self, Bench};
use crate::support::Redis;

/// A script's file, a text in it, and what stands there in its place.
struct Mutation {
    /// The scenario that is asked first.
    by: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
}

const fn mutation(by: &'static str, file: &'static str, from: &'static str, to: &'static str) -> Mutation {
    Mutation { by, file, from, to }
}

const MUTATIONS: &[Mutation] = &[
    // Numbers of calls.
    mutation("a_settle_sent_again_changes_nothing", "settle", "if last_call == tonumber(call) then", "if false then"),
    mutation(
        "a_claim_sent_again_answers_the_same",
        "claim",
        "if last and string.match(last, '^%d+') == call then",
        "if false then",
    ),
    mutation(
        "an_older_claim_takes_nothing",
        "claim",
        "if last and tonumber(string.match(last, '^%d+') or 0) > tonumber(call) then return {'old'} end",
        "",
    ),
    mutation(
        "an_empty_claim_sent_again_leaves_nothing_to_a_late_first",
        "claim",
        "if #ids > 0 or again then",
        "if #ids > 0 then",
    ),
    mutation(
        "a_standby_that_asked_again_leaves_nothing_to_a_late_first",
        "claim",
        "  if again then\n    -- The first",
        "  if false then\n    -- The first",
    ),
    mutation(
        "a_recovered_agent_is_gone_and_leaves_no_calls",
        "recover",
        "redis.call('HDEL', CALLS, agent, 's' .. agent, 'l' .. agent)",
        "",
    ),
    mutation(
        "a_recovered_agent_is_gone_and_leaves_no_calls",
        "settle",
        "if redis.call('ZSCORE', AGENTS, me) then\n  redis.call('HSET', CALLS,",
        "if true then\n  redis.call('HSET', CALLS,",
    ),
    // Ids.
    mutation("no_number_is_used_twice_when_the_clock_goes_back", "head", "math.max(last_number(), now_us)", "now_us"),
    mutation(
        "no_number_is_used_twice_when_the_counter_is_lost",
        "head",
        "math.max(last_number(), now_us)",
        "last_number()",
    ),
    mutation("a_claim_takes_no_more_messages_than_asked", "head", "last + n))", "last + n - 1))"),
    mutation("no_number_is_given_out_that_an_agent_has_seen", "head", "if last < seen then", "if false then"),
    mutation(
        "while_the_counter_is_ahead_of_the_clock_who_joins_leaves_numbers_out",
        "join",
        "if last_number() > now_us + MARGIN then",
        "if false then",
    ),
    mutation(
        "an_agent_learns_how_far_numbers_were_given_out",
        "claim",
        "#fresh > 0 and base + #fresh or last_number()",
        "0",
    ),
    mutation("an_agent_learns_how_far_numbers_were_given_out", "beat", "string.format('%.0f', numbered)", "'0'"),
    mutation("no_number_is_given_out_that_another_agent_has_seen", "head", "seen + margin()", "seen"),
    mutation("what_two_masters_leave_out_differs", "head", "MARGIN + now_us % 1000000 * 100", "MARGIN"),
    mutation(
        "no_number_is_given_out_that_an_agent_has_seen",
        "beat",
        "< seen then numbered = next_numbers(0, seen) end",
        "< 0 then end",
    ),
    mutation(
        "what_redis_has_lost_is_restored_and_the_rest_stays_where_it_is",
        "restore",
        "< highest and highest < HIGHEST then next_numbers(0, highest) end",
        "< 0 then end",
    ),
    // What was lost, and what only seems so.
    mutation(
        "an_agent_taken_for_dead_learns_of_it_when_it_joins_again",
        "recover",
        "if seen ~= '*' then note_recovered(agent) end",
        "",
    ),
    mutation(
        "an_agent_taken_for_dead_learns_of_it_when_it_joins_again",
        "recover",
        "if seen ~= '*' then note_recovered(agent) end",
        "note_recovered(agent)",
    ),
    mutation(
        "an_agent_taken_for_dead_learns_of_it_when_it_joins_again",
        "head",
        "if was_recovered(agent) then return end",
        "",
    ),
    mutation(
        "so_many_agents_taken_for_dead_are_remembered",
        "head",
        "string.sub(numbers, -17 * MOST_RECOVERED)",
        "numbers",
    ),
    mutation(
        "what_redis_has_lost_is_restored_and_the_rest_stays_where_it_is",
        "restore",
        "if redis.call('HEXISTS', MESSAGES, id) == 0 then",
        "if true then",
    ),
    mutation(
        "what_redis_has_lost_is_restored_and_the_rest_stays_where_it_is",
        "restore",
        "if not redis.call('ZSCORE', AGENTS, me) then return {'gone'} end",
        "",
    ),
    mutation(
        "what_redis_has_lost_is_restored_and_the_rest_stays_where_it_is",
        "restore",
        "if owner and tonumber(owner) == tonumber(me) then",
        "if true then",
    ),
    mutation(
        "a_settle_sent_again_says_again_what_was_not_ours",
        "settle",
        "#lost > 0 and call .. ' ' .. table.concat(lost, ' ') or call",
        "call",
    ),
    mutation(
        "a_settle_sent_again_says_again_what_was_not_ours",
        "settle",
        "return {'old', {}}",
        "return {'again', {}}",
    ),
    mutation("what_is_due_later_than_any_delay_is_due_now", "hasten", "hasten(LANES, due_at(now))", ""),
    mutation("what_is_due_later_than_any_delay_is_due_now", "hasten", "hasten(RETRY, now)", ""),
    mutation("what_is_due_later_than_any_delay_is_due_now", "hasten", "now + longest)", "now)"),
    mutation(
        "what_is_due_later_than_any_delay_is_due_now",
        "beat",
        "longest = math.max(longest, tonumber(delay or 0))",
        "",
    ),
    mutation("a_beat_tells_how_long_each_lease_is", "beat", "out[#out + 1] = length or", "out[#out + 1] ="),
    // Who may do what.
    mutation(
        "a_recovered_agent_is_gone_and_leaves_no_calls",
        "claim",
        "if not redis.call('ZSCORE', AGENTS, me) then return {'gone'} end",
        "",
    ),
    mutation("a_beat_lists_the_others_and_strangers_and_never_registers", "beat", "if registered then", "if true then"),
    mutation(
        "an_agent_whose_lease_has_changed_is_not_recovered",
        "recover",
        "if seen ~= '*' and lease ~= seen then return {'refused', 0} end",
        "",
    ),
    mutation("an_agent_whose_lease_has_changed_is_not_recovered", "recover", "redis.call('ZREM', AGENTS, agent)", ""),
    mutation(
        "what_is_not_ours_any_more_stays_where_it_is",
        "settle",
        "if owner and tonumber(owner) == mine then",
        "if owner then",
    ),
    mutation(
        "a_recovered_agent_is_gone_and_leaves_no_calls",
        "settle",
        "if owner and tonumber(owner) == mine then",
        "if true then",
    ),
    mutation(
        "only_what_is_in_flight_here_is_given_back",
        "give_back",
        "if owner and tonumber(owner) == tonumber(me) then",
        "if owner then",
    ),
    mutation(
        "only_the_dead_are_replayed_as_if_never_attempted",
        "replay",
        "if redis.call('ZSCORE', DEAD, id) then",
        "if true then",
    ),
    mutation("only_the_dead_are_dropped", "drop", "if redis.call('ZREM', DEAD, id) == 1 then", "if true then"),
    mutation(
        "a_standby_that_asked_again_leaves_nothing_to_a_late_first",
        "claim",
        "if other < me and is_id(other) then return true end",
        "",
    ),
    mutation(
        "in_order_nobody_claims_while_a_stranger_has_messages_in_flight",
        "claim",
        "return low and (tonumber",
        "return false and (tonumber",
    ),
    // What is written before anything else, and checked before that.
    mutation("a_full_redis_still_makes_every_move", "head", "redis.call('HDEL', CALLS, '')", ""),
    mutation(
        "a_wrong_type_at_any_key_leaves_everything_as_it_was",
        "head",
        "ipairs({INFLIGHT, WAITING, LANES, RETRY, DEAD, AGENTS})",
        "ipairs({})",
    ),
    mutation(
        "a_wrong_type_at_any_key_leaves_everything_as_it_was",
        "head",
        "ipairs({MESSAGES, FAILURES, HISTORY, RECOVERED, CALLS})",
        "ipairs({})",
    ),
    mutation(
        "twenty_thousand_messages_are_settled_and_recovered_in_one_go",
        "head",
        "for i = 1, #items, 500 do call(unpack(items, i, math.min(i + 499, #items))) end",
        "if #items > 0 then call(unpack(items)) end",
    ),
    // From one place to another.
    mutation(
        "due_retries_come_first_but_only_half_while_messages_are_queued",
        "claim",
        "all('ZREM', RETRY, retried)",
        "",
    ),
    mutation("what_waits_is_pulled_lowest_id_first_and_as_much_as_wanted", "claim", "all('ZREM', WAITING, left)", ""),
    mutation("a_claim_takes_no_more_messages_than_asked", "claim", "redis.call('LTRIM', K, from_k, -1)", ""),
    mutation("a_claim_takes_no_more_messages_than_asked", "claim", "all('ZADD', INFLIGHT, owned)", ""),
    mutation("a_message_recovered_for_the_fifth_time_is_dead", "recover", "all('ZREM', INFLIGHT, ids)", ""),
    mutation(
        "due_retries_come_first_but_only_half_while_messages_are_queued",
        "settle",
        "      redis.call('ZREM', INFLIGHT, it.id)\n",
        "",
    ),
    mutation(
        "what_was_delivered_goes_wherever_it_is",
        "settle",
        "unpack(delivered, i, to)) < to - i + 1 then",
        "unpack(delivered, i, to)) < 0 then",
    ),
    mutation(
        "what_was_delivered_goes_wherever_it_is",
        "settle",
        "if redis.call('ZREM', WAITING, member(origin_of[j], delivered[j])) > 0 and waiting_can_be_seen() then close_if_empty(origin_of[j]) end",
        "",
    ),
    mutation(
        "what_was_delivered_goes_wherever_it_is",
        "settle",
        "waiting_can_be_seen() then close_if_empty(origin_of[j]) end",
        "waiting_can_be_seen() then end",
    ),
    mutation(
        "what_was_delivered_goes_wherever_it_is",
        "settle",
        "    redis.call('ZREM', RETRY, unpack(delivered, i, to))\n",
        "",
    ),
    mutation(
        "what_was_delivered_goes_wherever_it_is",
        "settle",
        "    redis.call('ZREM', DEAD, unpack(delivered, i, to))\n",
        "",
    ),
    mutation(
        "what_was_delivered_goes_wherever_it_is",
        "settle",
        "if redis.call('HLEN', HISTORY) > 0 then all('HDEL', HISTORY, delivered) end",
        "",
    ),
    mutation(
        "a_delivered_message_leaves_no_count_of_deaths",
        "settle",
        "if any_recovered then all('HDEL', RECOVERED, delivered) end",
        "",
    ),
    mutation("dead_letters_past_their_keeping_are_forgotten", "forget", "now - age,", "'+inf',"),
    mutation(
        "dead_letters_past_their_keeping_are_forgotten",
        "forget",
        "if now > assert(tonumber(ARGV[3])) then return 0 end",
        "",
    ),
    mutation("dead_letters_past_their_keeping_are_forgotten", "forget", "all('HDEL', MESSAGES, ids)", ""),
    mutation("dead_letters_past_their_keeping_are_forgotten", "forget", "all('HDEL', HISTORY, ids)", ""),
    mutation("only_the_dead_are_dropped", "drop", "redis.call('HDEL', HISTORY, id)", ""),
    mutation(
        "what_another_service_put_off_is_taken_over_and_due_when_it_was",
        "take",
        "redis.call('ZREM', KEYS[1], member)",
        "1",
    ),
    mutation(
        "what_another_service_put_off_is_taken_over_and_due_when_it_was",
        "adopted",
        "due < now or due > now + longest",
        "due < now",
    ),
    mutation(
        "what_another_service_put_off_is_taken_over_and_due_when_it_was",
        "adopted",
        "due < now or due > now + longest",
        "due > now + longest",
    ),
    mutation(
        "what_another_service_put_off_is_taken_over_and_due_when_it_was",
        "adopted",
        "redis.call('ZADD', RETRY, due, id)",
        "",
    ),
    mutation("what_somebody_else_took_meanwhile_is_theirs", "adopted", "redis.call('ZREM', RETRY, id) == 1", "false"),
    mutation("what_somebody_else_took_meanwhile_is_theirs", "adopted", "redis.call('HDEL', MESSAGES, id)", ""),
    // What is remembered.
    mutation("only_the_dead_are_replayed_as_if_never_attempted", "replay", "put_off(id, nil, 0, 0, '')", ""),
    mutation("only_the_dead_are_replayed_as_if_never_attempted", "replay", "redis.call('HDEL', RECOVERED, id)", ""),
    mutation(
        "a_settled_attempt_clears_the_count_of_deaths",
        "settle",
        "if any_recovered and it.attempts > before then redis.call('HDEL', RECOVERED, it.id) end",
        "",
    ),
    mutation(
        "a_settled_attempt_clears_the_count_of_deaths",
        "settle",
        "if any_recovered and it.attempts > before then",
        "if true then",
    ),
    mutation("the_first_failure_of_a_message_is_remembered", "head", "if not first or", "if true or"),
    mutation(
        "the_first_failure_of_a_message_is_remembered",
        "head",
        " or attempts + 0 > 0 and tonumber(string.match(old, '^%d+')) == 0",
        "",
    ),
    mutation(
        "leaving_gives_back_everything_without_counting_a_death",
        "recover",
        "local died = count and is_id(id)",
        "local died = is_id(id)",
    ),
    mutation("a_message_recovered_for_the_fifth_time_is_dead", "recover", "died >= 5", "died >= 6"),
    // Lanes.
    mutation("an_emptied_lane_is_told_and_forgotten", "head", "redis.call('ZREM', LANES, origin)", ""),
    mutation("an_emptied_lane_is_told_and_forgotten", "head", "redis.call('HDEL', FAILURES, origin)", ""),
    mutation(
        "a_probe_takes_one_and_moves_the_lane_on",
        "settle",
        "  if not redis.call('ZSCORE', LANES, it.origin) then\n",
        "  if false then\n",
    ),
    mutation(
        "a_lane_keeps_its_time_when_more_comes_to_wait",
        "settle",
        "  if not redis.call('ZSCORE', LANES, it.origin) then\n",
        "  if true then\n",
    ),
    mutation(
        "of_lanes_that_never_failed_the_newest_is_first",
        "settle",
        "it.delay < 0 and -now or due_at(now + it.delay)",
        "due_at(now + it.delay)",
    ),
    mutation("a_lane_closes_once_for_the_same_failure", "settle", "  if due then\n", "  if true then\n"),
    mutation("a_lane_closes_once_for_the_same_failure", "settle", "if change.failures > known then", "if true then"),
    mutation(
        "a_lane_closes_once_for_the_same_failure",
        "settle",
        "      redis.call('HDEL', FAILURES, change.origin)\n",
        "",
    ),
    mutation(
        "an_emptied_lane_is_told_and_forgotten",
        "claim",
        "for _, origin in ipairs(emptied) do close_if_empty(origin) end",
        "",
    ),
    mutation(
        "a_probe_takes_one_and_moves_the_lane_on",
        "claim",
        "if #moved_lanes > 0 then all('ZADD', LANES, moved_lanes) end",
        "",
    ),
    mutation(
        "suspects_are_taken_a_few_at_a_time_from_their_lane",
        "claim",
        "or due_at(now + 100)",
        "or due_at(now + probe_ms)",
    ),
    mutation(
        "a_wanted_lane_that_failed_gives_one_probe",
        "claim",
        "elseif tonumber(due) <= 0 then take_from(origin,",
        "elseif tonumber(due) <= now then take_from(origin,",
    ),
    mutation("lanes_that_failed_are_tried_whatever_else_may_be_taken", "claim", "\n  try_failed()\n", "\n"),
    mutation(
        "of_lanes_that_failed_the_last_due_and_the_fast_ones_are_not_left_behind",
        "claim",
        "redis.call('ZREVRANGEBYSCORE', LANES, now, '(0', 'LIMIT', 0, n)",
        "{}",
    ),
    mutation(
        "of_lanes_that_failed_the_last_due_and_the_fast_ones_are_not_left_behind",
        "claim",
        "  take_all(false)\n  take_all(true)\n",
        "  take_all(true)\n  take_all(false)\n",
    ),
    mutation(
        "every_second_failure_in_a_row_the_newest_is_the_probe",
        "claim",
        "newest and newest_waiting_of(origin, room + 1) or",
        "",
    ),
    mutation(
        "what_is_due_and_has_no_place_is_looked_for_again_in_a_moment",
        "claim",
        "if passed_over or lanes_left then not_later(now + 20) end",
        "",
    ),
    mutation(
        "a_probe_takes_one_and_moves_the_lane_on",
        "claim",
        "if take_from(origin, 1, 1, 'p') > 0 then",
        "if take_from(origin, 2, 2, 'p') > 0 then",
    ),
    mutation(
        "a_lane_whose_probe_came_back_is_due_and_one_that_backs_off_is_not",
        "head",
        "return due > now and due % 2 == 1",
        "return due > now",
    ),
    mutation(
        "a_lane_whose_probe_came_back_is_due_and_one_that_backs_off_is_not",
        "head",
        "return due > now and due % 2 == 1",
        "return false",
    ),
    mutation(
        "a_lane_whose_probe_came_back_is_due_and_one_that_backs_off_is_not",
        "settle",
        "set_lane(due_at(now + change.delay), change.origin)\n    else",
        "\n    else",
    ),
    // Bounds.
    mutation(
        "a_claim_stops_after_the_message_that_reaches_its_bytes",
        "claim",
        "if bytes >= max_bytes then break end",
        "",
    ),
    mutation("a_claim_takes_no_more_messages_than_asked", "claim", "max_messages - #ids - #fresh)", "max_messages)"),
    mutation(
        "due_retries_come_first_but_only_half_while_messages_are_queued",
        "claim",
        "if n_queued == 0 then max_returning = max_messages end",
        "",
    ),
    mutation(
        "due_retries_come_first_but_only_half_while_messages_are_queued",
        "claim",
        "local max_retries = max_returning",
        "local max_retries = max_messages",
    ),
    mutation(
        "returning_messages_have_half_the_bytes_while_messages_are_queued",
        "claim",
        "n_queued > 0 and max_bytes / 2 or max_bytes",
        "max_bytes",
    ),
    mutation(
        "a_message_larger_than_an_agent_may_hold_is_dead_at_once",
        "claim",
        "if #body > largest then",
        "if false then",
    ),
    // Messages that agents die of.
    mutation(
        "what_agents_died_of_is_taken_only_as_far_as_it_goes_out_at_once",
        "claim",
        "  if fragile <= 0 then return false end\n",
        "",
    ),
    mutation(
        "what_agents_died_of_is_taken_only_as_far_as_it_goes_out_at_once",
        "claim",
        "died > 0 and (free <= 0 or not may_go(died))",
        "not may_go(died)",
    ),
    mutation(
        "the_more_agents_died_of_a_message_the_fewer_of_such_are_taken_together",
        "claim",
        "math.min(4, math.max(deaths, gravest))",
        "math.min(4, deaths)",
    ),
    mutation(
        "the_more_agents_died_of_a_message_the_fewer_of_such_are_taken_together",
        "claim",
        "        if not ordered then goes(died) end\n",
        "",
    ),
    mutation(
        "suspects_are_taken_a_few_at_a_time_from_their_lane",
        "claim",
        "died > 0 and (free <= 0 or not may_go(died))",
        "free <= 0",
    ),
    // Order.
    mutation("in_order_retries_come_alone_due_or_not", "claim", "if ordered then max_retries = max_messages end", ""),
    mutation(
        "in_order_retries_come_alone_due_or_not",
        "claim",
        "local retry_until = ordered and '(' .. whole(NEVER) or now",
        "local retry_until = now",
    ),
    mutation(
        "in_order_retries_come_alone_due_or_not",
        "claim",
        "local files_first = ordered and #ids > 0",
        "local files_first = false",
    ),
    mutation(
        "in_order_retries_come_alone_due_or_not",
        "claim",
        "if not (ordered and #retried > 0) then",
        "if true then",
    ),
    // What no agent writes.
    mutation(
        "numbers_go_on_from_now_when_the_counter_is_none",
        "head",
        "if last and last >= 0 and last < HIGHEST then",
        "if last and last >= 0 then",
    ),
    mutation(
        "numbers_go_on_from_now_when_the_counter_is_none",
        "head",
        "return math.floor(last) end",
        "return last end",
    ),
    mutation(
        "numbers_go_on_from_now_when_the_counter_is_none",
        "head",
        "if last and last >= 0 and last < HIGHEST then",
        "if last >= 0 and last < HIGHEST then",
    ),
    mutation(
        "what_is_no_id_is_put_out_of_the_way_of_retries",
        "claim",
        "if not is_id(id) then no_ids[#no_ids + 1] = id\n    elseif",
        "if",
    ),
    mutation(
        "what_is_no_id_is_put_out_of_the_way_of_retries",
        "claim",
        "for _, one in ipairs(no_ids) do redis.call('ZADD', RETRY, NEVER, one) end",
        "",
    ),
    mutation(
        "what_is_no_id_is_put_out_of_the_way_of_retries",
        "hasten",
        "(key == LANES or is_id(one)) and due or NEVER",
        "due",
    ),
    mutation(
        "what_waits_without_an_id_is_passed_over",
        "head",
        "if #one == length and is_id(string.sub(one, -16)) then",
        "if true then",
    ),
    mutation("what_waits_without_an_id_is_passed_over", "head", "if #one == length and is_id(", "if is_id("),
    mutation(
        "what_waits_without_an_id_is_passed_over",
        "head",
        "if #found == 0 or #whole_ones >= n or looked_at > 2000 then break end",
        "if true then break end",
    ),
    mutation(
        "scores_of_what_waits_are_put_right",
        "claim",
        "if not files_first and not waiting_can_be_seen() then",
        "if false then",
    ),
    mutation("scores_of_what_waits_are_put_right", "settle", "> 0 and waiting_can_be_seen() then", "> 0 then"),
    mutation("scores_of_what_waits_are_put_right", "head", "if #members == 500 then can = false end", ""),
    mutation(
        "a_lane_for_which_nothing_waits_is_forgotten",
        "claim",
        "if taken == 0 then no_lanes, odd = no_lanes + 1, odd + 1 end",
        "",
    ),
    mutation(
        "agents_and_owners_that_are_no_numbers_are_nobody",
        "beat",
        "if not is_id(agents[i]) then",
        "if false then",
    ),
    mutation(
        "agents_and_owners_that_are_no_numbers_are_nobody",
        "beat",
        "if tonumber(next[2]) % 1 ~= 0 then",
        "if false then",
    ),
    mutation(
        "agents_and_owners_that_are_no_numbers_are_nobody",
        "beat",
        "'ZRANGEBYSCORE', INFLIGHT, from, HIGHEST,",
        "'ZRANGEBYSCORE', INFLIGHT, from, '+inf',",
    ),
    mutation(
        "agents_and_owners_that_are_no_numbers_are_nobody",
        "claim",
        "if other < me and is_id(other) then",
        "if other < me then",
    ),
    mutation(
        "agents_and_owners_that_are_no_numbers_are_nobody",
        "claim",
        "owner_of_one('ZRANGEBYSCORE', 1, HIGHEST)",
        "owner_of_one('ZRANGEBYSCORE', '-inf', HIGHEST)",
    ),
    mutation(
        "agents_and_owners_that_are_no_numbers_are_nobody",
        "claim",
        "owner_of_one('ZREVRANGEBYSCORE', HIGHEST, 1)",
        "owner_of_one('ZREVRANGEBYSCORE', '+inf', 1)",
    ),
    mutation(
        "agents_and_owners_that_are_no_numbers_are_nobody",
        "claim",
        "if not one[2] or is_id(one[1]) and tonumber(one[2]) % 1 == 0 then",
        "if true then",
    ),
    mutation(
        "an_agent_with_any_lease_can_be_taken_back",
        "recover",
        "lease = lease and lease_of(lease) or ''",
        "lease = lease and string.format('%.0f', tonumber(lease)) or ''",
    ),
    mutation(
        "an_agent_with_any_lease_can_be_taken_back",
        "beat",
        "if length and (#length > 12 or #delay > 12) then",
        "if false then",
    ),
    mutation(
        "what_is_in_flight_and_no_message_is_taken_back_out_of_the_way",
        "recover",
        "  if not is_id(id) then\n",
        "  if false then\n",
    ),
    mutation(
        "what_is_in_flight_and_no_message_is_taken_back_out_of_the_way",
        "recover",
        "local died = count and is_id(id) and",
        "local died = count and",
    ),
    mutation(
        "counts_that_are_none_are_nought",
        "head",
        "if digits and #digits <= 9 and (after == '' or after == ' ') then",
        "if digits and #digits <= 9 then",
    ),
    mutation(
        "counts_that_are_none_are_nought",
        "head",
        "if digits and #digits <= 9 and (after == '' or after == ' ') then",
        "if digits then",
    ),
    mutation(
        "calls_that_are_no_numbers_are_none",
        "claim",
        "tonumber(string.match(last, '^%d+') or 0) >",
        "tonumber(string.match(last, '^%d+')) >",
    ),
    mutation(
        "calls_that_are_no_numbers_are_none",
        "claim",
        "local owner = is_id(id) and redis.call(",
        "local owner = redis.call(",
    ),
    mutation(
        "a_settle_sent_again_changes_nothing",
        "settle",
        "if last_call and last_call > tonumber(call) then return {'old', {}} end",
        "",
    ),
    mutation(
        "a_dead_letter_without_a_time_or_an_id_is_kept",
        "forget",
        "DEAD, FIRST_TIME, now - age,",
        "DEAD, '-inf', now - age,",
    ),
    mutation("a_dead_letter_without_a_time_or_an_id_is_kept", "forget", "if is_id(id) then", "if true then"),
    mutation(
        "nothing_is_older_than_its_claim_whatever_the_clock_said",
        "forget",
        "if claimed <= now and died < claimed - A_MINUTE then",
        "if false then",
    ),
    mutation(
        "nothing_is_older_than_its_claim_whatever_the_clock_said",
        "forget",
        "if claimed <= now and died",
        "if died",
    ),
    mutation(
        "who_joins_learns_how_far_the_clock_went_back_since_the_last_beat",
        "beat",
        ", 'clock', string.format('%.0f', now)",
        "",
    ),
    mutation(
        "who_joins_learns_how_far_the_clock_went_back_since_the_last_beat",
        "join",
        "math.max(0, beaten - now)",
        "0",
    ),
    mutation(
        "a_first_failure_long_before_any_is_none",
        "head",
        "return first and first >= FIRST_TIME and first < HIGHEST and first or nil",
        "return first",
    ),
    mutation(
        "a_message_without_a_name_is_not_lost",
        "head",
        "redis.call('HDEL', CALLS, '')",
        "redis.call('HDEL', MESSAGES, '')",
    ),
    // What operators order.
    mutation(
        "a_paused_lane_is_given_to_nobody_and_no_move_makes_it_due",
        "head",
        "is_paused(origin) and NEVER or due, origin)",
        "due, origin)",
    ),
    mutation(
        "a_paused_lane_is_given_to_nobody_and_no_move_makes_it_due",
        "order",
        "if due then times[#times + 1] = NEVER times[#times + 1] = origin end",
        "",
    ),
    mutation(
        "a_paused_lane_is_given_to_nobody_and_no_move_makes_it_due",
        "claim",
        "'(' .. whole(NEVER),\n  'WITHSCORES'",
        "'+inf',\n  'WITHSCORES'",
    ),
    mutation(
        "a_lane_that_is_resumed_is_due_at_once",
        "order",
        "if due then times[#times + 1] = due_at(now) times[#times + 1] = origin end\n  elseif what == 'try'",
        "\n  elseif what == 'try'",
    ),
    mutation(
        "a_lane_that_is_resumed_is_due_at_once",
        "order",
        "at[origin], n_paused, changed = false, n_paused - 1, true",
        "changed = true",
    ),
    mutation("agents_are_told_what_is_ordered_once", "order", "math.max(now_us, number + 1)", "now_us"),
    mutation(
        "agents_are_told_what_is_ordered_once",
        "order",
        "if what == 'pause' and not paused then",
        "if what == 'pause' then",
    ),
    mutation("agents_are_told_what_is_ordered_once", "claim", "if orders_number ~= known_orders then", "if true then"),
    mutation(
        "agents_are_told_what_is_ordered_once",
        "claim",
        "if orders_number ~= known_orders then",
        "if orders_number > known_orders then",
    ),
    mutation("agents_are_told_what_is_ordered_once", "claim", "odd, '0', orders_news()}", "odd, '0'}"),
    mutation(
        "what_waits_for_a_paused_endpoint_grows_no_older",
        "settle",
        "it.why, it.origin and is_paused(it.origin))",
        "it.why)",
    ),
    mutation(
        "what_waits_for_a_paused_endpoint_grows_no_older",
        "still",
        "return #found == n and found[#found] or ''",
        "return ''",
    ),
    mutation(
        "what_waits_for_a_paused_endpoint_grows_no_older",
        "still",
        "attempts, own, why, true)",
        "attempts, own, why)",
    ),
    mutation(
        "what_waits_for_a_paused_endpoint_grows_no_older",
        "head",
        "if still == '+' then first = now - first end",
        "",
    ),
    mutation(
        "only_what_backs_off_is_tried_and_that_is_told_for_a_minute",
        "order",
        "(state == 'down' or state == 'due' or state == 'none')",
        "not paused",
    ),
    mutation(
        "only_what_backs_off_is_tried_and_that_is_told_for_a_minute",
        "order",
        "(state == 'down' or state == 'due' or state == 'none')",
        "(state == 'down' or state == 'none')",
    ),
    mutation(
        "only_what_backs_off_is_tried_and_that_is_told_for_a_minute",
        "order",
        "kind == 'p' or tonumber(given) > number - 60000000",
        "true",
    ),
    mutation(
        "only_what_backs_off_is_tried_and_that_is_told_for_a_minute",
        "order",
        "kind == 'p' or tonumber(given) > number - 60000000",
        "tonumber(given) > number - 60000000",
    ),
    mutation(
        "an_order_that_is_dry_or_too_much_changes_nothing",
        "order",
        "if dry or not changed then",
        "if not changed then",
    ),
    mutation(
        "an_order_that_is_dry_or_too_much_changes_nothing",
        "order",
        "if n_paused > most then return {'full'} end",
        "",
    ),
    mutation(
        "what_is_retried_now_is_due_and_has_no_backoff_of_its_own",
        "retry",
        "if tonumber(due) > now then redis.call('ZADD', RETRY, now, id) end",
        "redis.call('ZADD', RETRY, now, id)",
    ),
    mutation(
        "what_is_retried_now_is_due_and_has_no_backoff_of_its_own",
        "retry",
        "if attempts then put_off(id, history, attempts, 0, why) end",
        "",
    ),
    mutation(
        "what_is_retried_now_is_due_and_has_no_backoff_of_its_own",
        "retry",
        "  if due then\n",
        "  if is_id(id) then\n    due = due or NEVER\n",
    ),
    mutation(
        "only_what_waits_is_dropped_and_its_lane_with_the_last",
        "drop_waiting",
        "if waiting_can_be_seen() then close_if_empty(origin) end",
        "",
    ),
    mutation(
        "only_what_waits_is_dropped_and_its_lane_with_the_last",
        "drop_waiting",
        "if redis.call('ZREM', WAITING, member(origin, id)) == 1 then",
        "if true then",
    ),
];

/// Attacks of a mutated script at most, of each kind.
const ATTACKS: u64 = 12;

fn noticed_by(redis: &Redis, mutation: &Mutation) -> Option<String> {
    let edit = |file: &str, text: String| {
        if file != mutation.file {
            return text;
        }
        text.replace(mutation.from, mutation.to)
    };
    let first = scenarios::ALL.iter().filter(|(name, _)| *name == mutation.by);
    let others = scenarios::ALL.iter().filter(|(name, _)| *name != mutation.by);
    for (name, scenario) in first.chain(others) {
        let failed = catch_unwind(AssertUnwindSafe(|| scenario(&mut Bench::new(redis, &edit)))).is_err();
        if failed {
            return Some(format!("scenario {name}"));
        }
        redis::cmd("FLUSHALL").exec(&mut redis.client()).unwrap();
    }
    for seed in 1..=ATTACKS {
        for (ordered, rollback) in [(false, false), (true, false), (false, true)] {
            if let Err(why) =
                (Attack { edit: &edit, ..Attack::new(seed, ordered, rollback) }).run(On::Redis, Some(redis))
            {
                return Some(why.lines().next().unwrap_or_default().to_string());
            }
        }
    }
    None
}

/// Each in turn, shared out among so many tests, which run side by side.
fn every_mutation_is_noticed(part: usize, parts: usize) {
    let mut unnoticed = Vec::new();
    for mutation in MUTATIONS.iter().skip(part).step_by(parts) {
        // A server for each: a scenario that fails may leave it full, or a script that never ends.
        let redis = Redis::with(&["appendonly no"]);
        let Mutation { file, from, to, .. } = mutation;
        match noticed_by(&redis, mutation) {
            Some(by) => println!("{file}: {from:?} -> {to:?}: {by}"),
            None => unnoticed.push(format!("{file}: {from:?} -> {to:?}")),
        }
    }
    assert!(unnoticed.is_empty(), "nothing notices:\n{}", unnoticed.join("\n"));
}

#[test]
fn every_mutation_of_a_script_is_noticed_1() {
    every_mutation_is_noticed(0, 2);
}

#[test]
fn every_mutation_of_a_script_is_noticed_2() {
    every_mutation_is_noticed(1, 2);
}

#[test]
fn every_mutation_changes_exactly_one_place() {
    let redis = Redis::with(&["appendonly no"]);
    for Mutation { file, from, .. } in MUTATIONS {
        let places = std::cell::Cell::new(None);
        let _ = Bench::new(&redis, &|name, text| {
            if name == *file {
                places.set(Some(text.matches(from).count()));
            }
            text
        });
        assert_eq!(places.get(), Some(1), "{file}.lua has this once: {from:?}");
    }
}

#[test]
fn a_careless_judgement_of_who_is_dead_is_noticed() {
    let believes = Rules { trusts_its_memory: true, ..Rules::default() };
    let run = |seed| Attack { rules: believes.clone(), ..Attack::new(seed, false, false) }.run(On::Memory, None);
    // It takes a freeze past the lease, and another that delivers meanwhile: some seeds have it.
    let noticed = (101..=500).any(|seed| run(seed).is_err());
    assert!(noticed, "nothing notices one that goes on after others took it for dead");
    type Change = fn(&mut Rules);
    let others: [(&str, bool, Change); 5] = [
        ("orders are not heard", false, |rules| rules.goes_by_no_orders = true),
        ("what was let out begins though it is paused", false, |rules| rules.begins_what_was_let_out = true),
        ("one that cannot renew its lease begins attempts", false, |rules| rules.begins_without_a_lease = true),
        ("what the queue has lost is let go after an attempt", true, |rules| rules.lets_go_of_what_is_lost = true),
        ("what the queue has lost is dropped unattempted", true, |rules| rules.drops_what_it_holds = true),
    ];
    for (what, rollback, change) in others {
        let mut rules = Rules::default();
        change(&mut rules);
        let run = |seed| Attack { rules: rules.clone(), ..Attack::new(seed, false, rollback) }.run(On::Memory, None);
        let by = (1..=1000).find(|seed| run(*seed).is_err());
        assert!(by.is_some(), "nothing notices: {what}");
        println!("{what}: seed {by:?}");
    }
    let careless = [
        ("one look is enough", peers::Rules { looks: 1, span_a_lease: false, ..peers::Rules::default() }),
        ("three looks need not span a lease", peers::Rules { span_a_lease: false, ..peers::Rules::default() }),
        ("a renewed lease counts for nothing", peers::Rules { renewals_count: false, ..peers::Rules::default() }),
        ("looks may be far apart", peers::Rules { gaps_begin_anew: false, looks: 2, ..peers::Rules::default() }),
        ("our own lease is everybody's", peers::Rules { their_lease_counts: false, ..peers::Rules::default() }),
    ];
    for (what, judged) in careless {
        let rules = Rules { peers: judged, ..Rules::default() };
        let run = |seed| Attack { rules: rules.clone(), ..Attack::new(seed, false, false) }.run(On::Memory, None);
        assert!((1..=60).any(|seed| run(seed).is_err()), "nothing notices: {what}");
    }
}
