-- Stands before every move. A move reads and checks all it will touch, then makes
-- one write that even a full Redis allows (`open_for_writing`), then adds to the
-- new place, then removes from the old: an error in mid-script is not rolled
-- back, so nothing may fail after the first write.
local K, ID, MESSAGES, INFLIGHT, WAITING, LANES, FAILURES, RETRY, DEAD, HISTORY, RECOVERED, AGENTS, CALLS = unpack(KEYS)
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)

-- Raises WRONGTYPE while nothing has been written yet.
local function check_types()
  redis.call('LLEN', K)
  redis.call('GET', ID)
  for _, key in ipairs({MESSAGES, FAILURES, HISTORY, RECOVERED, CALLS}) do redis.call('HLEN', key) end
  for _, key in ipairs({INFLIGHT, WAITING, LANES, RETRY, DEAD, AGENTS}) do redis.call('ZCARD', key) end
end

-- At maxmemory a first write of ZADD or HSET is refused, but HDEL is not, and opens the rest. Of the call of
-- an agent without a number: that is nobody's, and no message.
local function open_for_writing() redis.call('HDEL', CALLS, '') end

-- Whatever else than an agent writes is found at a key is left out and counted, never an error: everything is
-- looked at before it is used.
local odd = 0
-- Numbers are microseconds since 1970 or a little more: this is in the year 2223, and a double holds it exactly.
local HIGHEST = 8000000000000000
-- No message is due then. What stands on the retry schedule and is no id is put there, out of the way.
local NEVER = 9000000000000000
-- Times of messages are later: this is in 2001.
local FIRST_TIME = 1000000000000
local function is_id(text) return #text == 16 and not string.find(text, '%D') end
-- A count, at the beginning of a record or all of it; 0 if there is none that could be.
local function count_of(text)
  local digits, after = string.match(text, '^(%d+)(.?)')
  if digits and #digits <= 9 and (after == '' or after == ' ') then return tonumber(digits) end
  odd = odd + 1
  return 0
end
-- A score as a whole number that Rust can read too.
local function whole(score) return string.format('%.0f', math.max(-NEVER, math.min(NEVER, tonumber(score)))) end

-- `unpack` of 8,000 values is an error on Redis 7 and a crash before; an even step keeps pairs together.
local function in_chunks(items, call)
  for i = 1, #items, 500 do call(unpack(items, i, math.min(i + 499, #items))) end
end
local function all(command, key, items)
  in_chunks(items, function(...) redis.call(command, key, ...) end)
end

-- Ids and agents' numbers come from one counter that never goes back, not even
-- when Redis lost data: it is at least the time in microseconds, and at least the
-- highest number that the agent has seen, whatever the clock of a new master says. If it is behind that, data was
-- lost, and others may have been given numbers since the agent saw that one: some are left out. How many
-- differs from time to time: another may have left out some from the same number on, where this server was not.
local MARGIN = 10000000
local function margin() return MARGIN + now_us % 1000000 * 100 end
local function last_number()
  local last = tonumber(redis.call('GET', ID) or '0')
  if last and last >= 0 and last < HIGHEST then return math.floor(last) end
  odd = odd + 1
  return 0
end
local function next_numbers(n, seen)
  local last = math.max(last_number(), now_us)
  if last < seen then last = math.min(seen + margin(), HIGHEST - 1 - n) end
  redis.call('SET', ID, string.format('%.0f', last + n))
  return last
end
-- A lease as an agent sees it in another's beat: whoever takes it back gives the same.
local function lease_of(score) return string.format('%.0f', math.max(0, math.min(NEVER, tonumber(score)))) end
-- What is due from a time on, but for what is due never.
local function due_between(key, from, n)
  local found = redis.call('ZRANGEBYSCORE', key, from, '(' .. whole(NEVER), 'LIMIT', 0, n)
  if #found > 0 then return found end
  return redis.call('ZRANGEBYSCORE', key, '(' .. whole(NEVER), '+inf', 'LIMIT', 0, n)
end
local function sixteen(number) return string.format('%016.0f', tonumber(number)) end

-- Agents that others took for dead, the newest last, so many at most: one that wakes after its lease asks
-- for itself when it joins again. All that it held was known here, and is others' now.
local MOST_RECOVERED = 1000
local function was_recovered(agent)
  local numbers = redis.call('HGET', CALLS, 'recovered')
  return numbers and string.find(numbers, agent, 1, true)
end
local function note_recovered(agent)
  if was_recovered(agent) then return end
  local numbers = (redis.call('HGET', CALLS, 'recovered') or '') .. agent .. ' '
  redis.call('HSET', CALLS, 'recovered', string.sub(numbers, -17 * MOST_RECOVERED))
end

local function member(origin, id) return origin .. '\n' .. id end
-- What waits for a lane, as far as it has an id, from one end or the other; ':' is the character after '9'.
local function some_waiting(command, first, last, length, n)
  local found = redis.call(command, WAITING, first, last, 'LIMIT', 0, n)
  local whole_ones, looked_at = {}, 0
  while true do
    for _, one in ipairs(found) do
      if #one == length and is_id(string.sub(one, -16)) then whole_ones[#whole_ones + 1] = one end
    end
    if #whole_ones == #found and looked_at == 0 then return found end
    looked_at = looked_at + #found
    if #found == 0 or #whole_ones >= n or looked_at > 2000 then break end
    found = redis.call(command, WAITING, first, last, 'LIMIT', looked_at, math.max(16, n - #whole_ones))
  end
  odd = odd + looked_at - #whole_ones
  for i = n + 1, #whole_ones do whole_ones[i] = nil end
  return whole_ones
end
local function waiting_of(origin, n)
  return some_waiting('ZRANGEBYLEX', '[' .. origin .. '\n', '[' .. origin .. '\n:', #origin + 17, n)
end
local function newest_waiting_of(origin, n)
  return some_waiting('ZREVRANGEBYLEX', '[' .. origin .. '\n:', '[' .. origin .. '\n', #origin + 17, n)
end
-- All scores there are 0: one that is not hides others from looks by text. Put right, some in each call; false if
-- there are more: then nothing can be told of what waits.
local function waiting_can_be_seen()
  local first = redis.call('ZRANGE', WAITING, 0, 0, 'WITHSCORES')[2]
  if not first then return true end
  local last = redis.call('ZREVRANGE', WAITING, 0, 0, 'WITHSCORES')[2]
  if tonumber(first) == 0 and tonumber(last) == 0 then return true end
  open_for_writing()
  local can = true
  for _, range in ipairs({{'-inf', '(0'}, {'(0', '+inf'}}) do
    local members, scores = redis.call('ZRANGEBYSCORE', WAITING, range[1], range[2], 'LIMIT', 0, 500), {}
    for i, one in ipairs(members) do scores[2 * i - 1], scores[2 * i] = 0, one end
    all('ZADD', WAITING, scores)
    odd = odd + #members
    if #members == 500 then can = false end
  end
  return can
end
-- When a lane may be tried: an odd time says that it is left alone because it is being
-- probed, an even one that it backs off. Never failed is negative, open is 0.
local function probed_until(ms) return ms + 1 - ms % 2 end
local function due_at(ms) return ms - ms % 2 end
local function is_probed(due) return due > now and due % 2 == 1 end
local function close_if_empty(origin)
  if #waiting_of(origin, 1) == 0 then
    redis.call('ZREM', LANES, origin)
    redis.call('HDEL', FAILURES, origin)
  end
end

-- What operators have ordered for endpoints, a line each: `origin pN` as long as it is paused, `origin tN` for a while
-- after it was to be tried now; N is the number of the order, the time in microseconds or a little more.
local orders
local function is_paused(origin)
  orders = orders or redis.call('HGET', CALLS, 'orders') or ''
  return string.find(orders, '\n' .. origin .. ' p', 1, true) ~= nil
end
-- However a lane's time is set: while it is paused it has none.
local function set_lane(due, origin) redis.call('ZADD', LANES, is_paused(origin) and NEVER or due, origin) end

-- failures of a lane: how many in a row, s if the last one was slow (else f), the last error.
local function fails_slowly(record) return record and string.match(record, '^%d+ s ') end

-- An id is at least the time of its claim in microseconds: no stamp of a message is before that, in ms.
local function claimed_at(id) return math.floor(tonumber(id) / 1000) end

-- history: attempts, failures of its own, its first failure (or, not attempted yet, when it was first put off; ms), last
-- error. While its endpoint is paused it grows no older: then its age stands there, behind a plus sign.
local function first_put_off(history)
  local still, first = string.match(history or '', '^%d+ %d+ (%+?)(%d+) ')
  first = tonumber(first)
  if still == '+' then first = now - first end
  return first and first >= FIRST_TIME and first < HIGHEST and first or nil
end
local function put_off(id, old, attempts, own, why, stands_still)
  local first = first_put_off(old)
  if not first or attempts + 0 > 0 and tonumber(string.match(old, '^%d+')) == 0 then first = now end
  local stamp = stands_still and string.format('+%.0f', math.max(0, now - first)) or string.format('%.0f', first)
  redis.call('HSET', HISTORY, id, string.format('%d %d %s ', attempts, own, stamp) .. why)
end
