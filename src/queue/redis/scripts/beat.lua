-- beat(me, lease ms, highest number seen, longest delay ms)
--   -> {registered, now, the longest delay of all agents, whether something is due later than that,
--       {number, lease, its length}..., odd entries, the last number given out}
-- Renews the lease, never registers again. Lists all agents, and with lease '' every number in flight
-- that nobody registered.
local me, lease, seen, longest =
  ARGV[1], assert(tonumber(ARGV[2])), assert(tonumber(ARGV[3])), assert(tonumber(ARGV[4]))
check_types()
local registered, numbered = redis.call('ZSCORE', AGENTS, me), last_number()
if registered then
  open_for_writing()
  redis.call('ZADD', AGENTS, now + lease, me)
  redis.call('HSET', CALLS, 'l' .. me, string.format('%.0f %.0f', lease, longest), 'clock', string.format('%.0f', now))
  -- A replica that became master may have a lower one, and other agents claim there too.
  if math.max(numbered, now_us) < seen then numbered = next_numbers(0, seen) end
end
local out, known = {}, {}
local agents = redis.call('ZRANGE', AGENTS, 0, -1, 'WITHSCORES')
for i = 1, #agents, 2 do
  if not is_id(agents[i]) then odd = odd + 1
  else
    local expires = tonumber(agents[i + 1])
    known[agents[i]] = true
    out[#out + 1] = agents[i]
    out[#out + 1] = lease_of(expires)
    local length, delay = string.match(redis.call('HGET', CALLS, 'l' .. agents[i]) or '', '^(%d+) (%d+)$')
    if length and (#length > 12 or #delay > 12) then length, delay, odd = nil, nil, odd + 1 end
    -- Programs before this one did not write it down; what is left of the lease is the next best, if it can be one.
    local left = math.max(0, expires - now)
    out[#out + 1] = length or string.format('%.0f', left <= 3600000 and left or 0)
    longest = math.max(longest, tonumber(delay or 0))
  end
end
-- The numbers in flight are the scores: each step goes past the one just seen.
local from = '1'
for _ = 1, 1000 do
  local next = redis.call('ZRANGEBYSCORE', INFLIGHT, from, HIGHEST, 'WITHSCORES', 'LIMIT', 0, 1)
  if not next[2] then break end
  if tonumber(next[2]) % 1 ~= 0 then odd = odd + 1
  else
    local number = sixteen(next[2])
    if not known[number] then out[#out + 1] = number out[#out + 1] = '' out[#out + 1] = '0' end
  end
  from = '(' .. next[2]
end
-- What nobody can have in flight, and what is on the retry schedule and is no message: seen again at each beat,
-- as long as it is there.
odd = odd + #redis.call('ZRANGEBYSCORE', INFLIGHT, '-inf', '(1', 'LIMIT', 0, 100)
odd = odd + #redis.call('ZRANGEBYSCORE', INFLIGHT, '(' .. whole(HIGHEST), '+inf', 'LIMIT', 0, 100)
odd = odd + #redis.call('ZRANGEBYSCORE', RETRY, NEVER, NEVER, 'LIMIT', 0, 100)
local function is_beyond(key)
  return #due_between(key, '(' .. whole(now + longest), 1) > 0
end
return {registered and 1 or 0, now, longest, (is_beyond(RETRY) or is_beyond(LANES)) and 1 or 0, out, odd,
  string.format('%.0f', numbered)}
